"""Run by alembic: brings the tables up to date over the connection that the store gives."""

from alembic import context

from hermosis_sidecar.history.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
