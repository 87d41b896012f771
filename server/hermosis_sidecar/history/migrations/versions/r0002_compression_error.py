"""What codecs left out of the gradients of a step."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("readings", sa.Column("compression_error", sa.Double))


def downgrade() -> None:
    op.drop_column("readings", "compression_error")
