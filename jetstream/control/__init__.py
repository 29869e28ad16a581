"""The control plane: how the ranks of a job find each other. Idle once they have."""
