"""Reading depth: how much of the model each prompt token runs through before the answer is written.

`reader` says which tokens are read how deep, `maps` fill the keys and values of the layers that a
shallow token does not reach, `fit` computes the maps in closed form, `realize` makes a
`transformers` model read so, for measuring quality.
"""
