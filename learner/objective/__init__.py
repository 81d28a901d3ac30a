"""Pure maths of the update: tensors in, tensors out. No I/O, no configuration, no logger, no collectives.

Every objective is a function from the flat tokens of an optimizer step to each token's value and slope, see
`core`; `evaluate` takes padded tensors.

    from learner.objective import evaluate
    evaluate("p3o", policy_logprobs, behavior_logprobs, advantages, loss_mask, kl_estimator="k3").loss.backward()
"""

from learner.objective.evaluate import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]
