"""A model that reads molecules as tokens: Mol-LLaMA's architecture, with torch, transformers and RDKit alone.

    graphs.py     graphs of `Media` as tensors
    encoders.py   the atoms of a molecule as vectors: by its bonds (2D) and by their places (3D)
    model.py      both views blended, read by eight queries, projected into a Llama
    convert.py    the released parts and a Llama judge as one folder

Written anew after https://github.com/DongkiKim95/Mol-LLaMA (8544da0); the vectors of a molecule are the same to a
rounding error where the conformer is. Importing this package loads neither torch nor RDKit.
"""
