"""RoleGen-JAX: conversion-trajectory reasoning and generative recommendation in one jitted loop.

The map of the package is WORKSPACE.md.
"""
