"""Trackers: the numbers of every step in TensorBoard, Weights & Biases, MLflow or trackio.

follower.py   a thread that hands over what is final, once, and never stops the run
series.py     a row of the history as numbers by name
base.py       what a tracker is; which one a configuration asks for
tensorboard.py wandb.py mlflow.py trackio.py   one each; their packages are loaded where they are used
"""
