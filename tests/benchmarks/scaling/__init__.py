"""A model of many replicas under load, driven by measured times; nothing here runs a service."""
