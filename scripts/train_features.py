"""Train the classifier whose features ship with the package: python scripts/train_features.py."""

from jax_ddpm.jobs.train_features import train_features

if __name__ == "__main__":
    train_features()
