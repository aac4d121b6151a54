"""The dashboards of docker/grafana as pictures: what their JSON says, drawn from what a Prometheus answers.

`python -m tests.deploy.boards DIR...` serves artefacts under load and draws both.
"""
