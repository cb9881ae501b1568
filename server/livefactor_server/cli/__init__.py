"""The `livefactor` command."""
