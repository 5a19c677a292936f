"""The paper's comparisons at lab scale, each one command.

`quick` trains K = 0, 1 and 2 on generated shapes with the same data, seed and steps, and compares them. Every run is a
cell: a folder named after its configuration's hash, with everything that `codetr train` writes and a `record.json`.
A cell that has its record is never trained again; one that was stopped goes on from its checkpoint.

`ship` turns a finished run into a model that comes with the package.
"""
