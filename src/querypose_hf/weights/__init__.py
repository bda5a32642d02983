"""Weights: conversion, backbones, storage, fusion, adapters."""
