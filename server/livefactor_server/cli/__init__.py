"""The `livefactor` command.

A command has a file or a folder with its name. In a folder, `command` (or `commands`) declares
options and imports nothing that takes long. The other files do the work. `app` lists all commands.
`base` and `screen` are what commands share, and `columns` has the options of `tune` and `evaluate`.
"""
