"""What ends a subcommand."""


class CommandError(Exception):
    """The command cannot do its work. The message is one line for the user."""
