"""The learner's end of weights over the wire."""
