"""Structured pruning of language models into nested variants that share one set of weights.

A variant keeps the first neurons and key/value groups of each layer in order of importance, or
skips blocks. The rooms, in the order in which they may import each other:

- `support`: files, checkpoints, progress bars, validation of JSON.
- `architecture`: where the parts of a `transformers` model are, one module a model family.
- `variant`: `VariantSpec`, the widths of one variant.
- `correction`: small tensors that win quality back.
- `data`: text files and data sets as rows of token ids.
- `calibration`: statistics of activations, gathered layer by layer.
- `realization`: the order of units, and variants as masks or as smaller models.
- `importance`: scores by which units and blocks are ranked.
- `artefact`: the folder of variants, corrections and measured tables.
- `evaluation`: quality against the base, tasks, reports and plots.
- `allocation`: how a budget of parameters or time is spread over the layers.
- `recovery`: corrections in closed form.
- `distill`: corrections by training.
- `kv`: which cached tokens stay when a KV budget is full.
- `reading`: how many layers each token of a prompt runs through.
- `builder`: the pipeline from a recipe to an artefact.

Importing `pruners` loads none of them.
"""
