"""The `sparse-detr` command: `main` chooses, every other module is one subcommand."""
