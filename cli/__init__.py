"""The `polynya` command: each subcommand gathers arguments and calls the library."""
