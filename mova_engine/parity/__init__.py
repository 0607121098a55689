"""Parity: reproduce recorded cases of the reference model, tensor by tensor, on any device.

A folder of cases holds `caseN_name.json` (configuration, weights, notes) beside `caseN_name.safetensors` (inputs
`in.*`, states `mid.*`, outputs `out.*`, gradients `grad.*`, tables). Every tensor that is not an input must be
reproduced: one that no runner produces counts as a miss.
"""
