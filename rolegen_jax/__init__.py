"""RoleGen-JAX: conversion-trajectory reasoning and generative recommendation in one jitted loop. Map: WORKSPACE.md."""
