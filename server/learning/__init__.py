"""Makes an artefact of a served model while nobody waits.

A process of the lowest priority (`worker`) runs the stages of `plan`, each into the artefact that
is kept for the model. `supervisor` starts it, stops it while requests are answered, and lets
`offer` take what is finished into the running server.
"""
