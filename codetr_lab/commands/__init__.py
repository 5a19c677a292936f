"""The commands of `codetr`, by subject. Heavy imports wait inside `run`, so that `codetr --help` answers at once."""
