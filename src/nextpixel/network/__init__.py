"""The transformer: model, attention, caches of keys and values, compiled and int8 decoding, cost.

May use tokens and config.
"""
