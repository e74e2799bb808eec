"""What every command has in common: words of a shell come in, settings go out; and how a command ends.

Read `ending` (one line and an exit status, whatever happens), `values` (YAML files, and whether a value fits a setting), `help`
(what `--help` prints), `parser` (the command line, and a YAML file under it), `colour` (whether to use it).
"""
