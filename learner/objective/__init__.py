"""Pure maths of the update: tensors in, tensors out. No I/O, no configuration, no logger, no collectives.

Tensors are flat over the trained tokens of what they cover: n of a whole step, N of one micro-batch.
"""
