# `ttgpt` as an image, and artefacts as images, by Docker with BuildKit.
#   docker build --file docker/compressor.Dockerfile --target compressor --tag ttgpt-compressor .
#   mkdir -p models
#   docker run --rm --init --user "$(id -u):$(id -g)" --volume "$PWD/models:/models" ttgpt-compressor compress gpt2-mini --method quantize --out /models/gpt2-mini-int8
# The folder is made first and written as its owner, because Docker would make it root's, and the image's own user could
# not write there.
# The last target holds one finished artefact under /models, for OCI image volumes, initContainers and COPY --from. Of
# gpt2-mini, which is embedded; of a hub id; of a folder:
#   docker build --file docker/compressor.Dockerfile --tag ttgpt-artifact .
#   docker build --file docker/compressor.Dockerfile --tag ttgpt-artifact --build-arg MODEL=distilgpt2 --build-arg NAME=distilgpt2-int8 .
#   docker build --file docker/compressor.Dockerfile --tag ttgpt-artifact --build-context checkpoint=my-gpt2 --build-arg MODEL=/checkpoint --build-arg NAME=mine .
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
# The same Python with a C compiler, for the kernels; nothing of it but /opt/venv is kept.
ARG BUILD_IMAGE=python:3.11-bookworm
# Of the artefact's image: an initContainer copies with its shell; an image volume takes only the files.
ARG BUSYBOX_IMAGE=busybox:1.37

FROM ${BUILD_IMAGE} AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
RUN python -m venv --without-pip /opt/venv
# Dependencies first and by themselves, so that a change of the sources does not install torch again. Of torch, its
# tests, headers and tools are left out (195 MB), but for the one that its shared tensors are kept by.
COPY pyproject.toml ./
RUN python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(*project['dependencies'], *project['optional-dependencies']['compressor'], sep='\n')" > requirements.txt \
 && grep '^torch==' requirements.txt > torch.txt \
 && pip --python /opt/venv/bin/python install --index-url "${TORCH_INDEX}" --requirement torch.txt \
 && pip --python /opt/venv/bin/python install --requirement requirements.txt \
 && rm -r /opt/venv/lib/python3*/site-packages/torch/include /opt/venv/lib/python3*/site-packages/torch/test \
 && find /opt/venv/lib/python3*/site-packages/torch/bin -type f ! -name torch_shm_manager -delete
COPY LICENSE README.md ./
COPY compressor compressor
COPY service service
RUN pip --python /opt/venv/bin/python install --no-deps .

FROM ${PYTHON_IMAGE} AS compressor
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="ttgpt-compressor" \
      org.opencontainers.image.description="Compresses GPT-2 checkpoints into artefacts" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/venv /opt/venv
# Owned by the user, because a new named volume takes its owner from here.
RUN install --directory --owner=10001 --group=10001 /models
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MALLOC_ARENA_MAX=2
WORKDIR /models
USER 10001:10001
ENTRYPOINT ["ttgpt"]
CMD ["--help"]

# Stands in for the folder that --build-context checkpoint=... gives; never empty, so that it can be mounted.
FROM scratch AS checkpoint
COPY LICENSE /

FROM compressor AS artifact-build
ARG MODEL=gpt2-mini
ARG NAME=gpt2-mini-int8
ARG OPTIONS="--method quantize"
# A checkpoint that only its owner may read is root's here.
# hadolint ignore=DL3002
USER 0:0
# OPTIONS are several words.
# hadolint ignore=SC2086
RUN --mount=type=bind,from=checkpoint,target=/checkpoint \
    ttgpt compress "${MODEL}" ${OPTIONS} --out "/models/${NAME}" \
 && chmod --recursive a+rX /models

FROM ${BUSYBOX_IMAGE} AS artifact
ARG NAME=gpt2-mini-int8
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="ttgpt-artifact-${NAME}" \
      org.opencontainers.image.description="A compressed GPT-2 under /models" \
      org.opencontainers.image.version="${VERSION}"
COPY --from=artifact-build /models /models
# An image volume has this image's root where an initContainer has /models: the artefact is found in both.
RUN ln -s "models/${NAME}" "/${NAME}"
USER 10001:10001
CMD ["ls", "/models"]
