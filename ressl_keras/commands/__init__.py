"""The commands, one module each: `ressl-train` is `commands.train.main`."""
