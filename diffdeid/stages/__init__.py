"""The stages of the method, in the paper's order.

detect, reconstruct, identity, condition, denoise, register, verify, compose
"""
