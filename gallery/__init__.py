"""The gallery: pictures of the theory, each computed by the very steps that the server takes."""
