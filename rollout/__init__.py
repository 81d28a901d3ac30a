"""The rollout server: admit, sync weights, generate a group, reward, append."""
