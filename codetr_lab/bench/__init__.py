"""How fast things are on this machine: `codetr bench`. One file per subject, with `CASES` and `bench(names, out)`."""
