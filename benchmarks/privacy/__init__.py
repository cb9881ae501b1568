"""What privacy costs (docs/privacy.md). Each module is a command that prints its figures."""
