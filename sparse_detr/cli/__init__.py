"""The `sparse-detr` command: `main` chooses a subcommand; every other module is one of them."""
