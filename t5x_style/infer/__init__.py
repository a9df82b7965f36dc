"""Generating and scoring text with a trained model.

`sampler.Sampler` is the way in for generation, `scoring` for log-probabilities of given text.
"""
