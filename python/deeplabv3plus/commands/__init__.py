"""The subcommands of `dlv3p`, one module each; imported when they are called."""
