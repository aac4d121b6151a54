# The server alone: neither transformers nor a compiler, nobody's root, nothing written. Docker 25 or later, for the
# HEALTHCHECK's start interval; the artefact is made as in the head of docker/compressor.Dockerfile.
#   docker build --file docker/service.Dockerfile --tag ttgpt-service .
#   docker run --rm --init --publish 127.0.0.1:8000:8000 --read-only --volume "$PWD/models:/models:ro" ttgpt-service
# To bake an artefact in, name an image that holds one under /models (docker/compressor.Dockerfile, target artifact):
#   docker build --file docker/service.Dockerfile --target baked --build-arg ARTIFACT=ttgpt-artifact --tag ttgpt-baked .
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
# The same Python with a C compiler, for the runtime; nothing of it but /opt/venv is kept.
ARG BUILD_IMAGE=python:3.11-bookworm
ARG ARTIFACT=scratch

FROM ${BUILD_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
RUN python -m venv --without-pip /opt/venv
# Dependencies first and by themselves, so that a change of the sources does not install them again. numpy's tests are
# left out, and in the lock (make lock) the tokenizer's client of the hub: nothing here fetches anything.
COPY docker/service.lock ./
RUN pip --python /opt/venv/bin/python install --no-deps --require-hashes --requirement service.lock \
 && find /opt/venv/lib/python3*/site-packages/numpy -type d -name tests -prune -exec rm -r {} +
COPY pyproject.toml LICENSE README.md ./
COPY compressor compressor
COPY service service
# The embedded model is for those who build.
RUN pip --python /opt/venv/bin/python install --no-deps . \
 && rm -r /opt/venv/lib/python3*/site-packages/compressor/reference

FROM ${PYTHON_IMAGE} AS service
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="ttgpt-service" \
      org.opencontainers.image.description="Serves compressed GPT-2 over HTTP" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MALLOC_ARENA_MAX=2 \
    TTGPT_HOST=0.0.0.0 \
    TTGPT_PORT=8000 \
    TTGPT_MODELS=/models/gpt2-mini-int8
WORKDIR /app
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# urlopen raises for every status but 2xx; the start period covers a large model on a slow disk.
HEALTHCHECK --interval=10s --timeout=5s --start-period=600s --start-interval=1s --retries=3 \
    CMD ["python", "-I", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['TTGPT_PORT'] + '/readyz', timeout=4)"]
# Exec form: the server is process 1, so SIGTERM reaches it.
ENTRYPOINT ["python", "-m", "service"]

FROM ${ARTIFACT} AS artifact

FROM service AS baked
COPY --from=artifact /models /models

# What is built when no target is named.
FROM service
