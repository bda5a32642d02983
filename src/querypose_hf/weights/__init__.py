"""Weights: conversion, backbones, storage, adapters."""
