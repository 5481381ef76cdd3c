"""Automatic mixture ratios: small proxies, a law of loss against shares, a proposal with its uncertainty."""
