"""Access: who somebody is, by a token, a certificate or an identity provider; and what was done under that name."""
