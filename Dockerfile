# Three images. The classic builder and BuildKit both build them.
#
#   docker build --target gateway -t handpose-gateway .     REST and gRPC in front of TensorFlow Serving; no TensorFlow
#   docker build --target trainer -t handpose-trainer .     trains, measures and exports
#   docker build -t handpose-embedded .                     the gateway with TensorFlow and the models in it
#
# Reproducible: every package has the version of constraints.txt, bytecode does not depend on times, and what pulls a
# tag that moves is a build argument. A release pins it: --build-arg PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:...
# All run as user 10001 and write to /tmp and to volumes only, so the root may be read-only.

ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# ---- what all share: a user, an empty environment
FROM ${PYTHON_IMAGE} AS base
LABEL org.opencontainers.image.title="handpose" \
      org.opencontainers.image.description="Hand-pose service: send an image, get 21 keypoints with confidences" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 handpose \
 && useradd --uid 10001 --gid handpose --no-create-home --home-dir /tmp --shell /usr/sbin/nologin handpose \
 && python3 -m venv --without-pip /opt/handpose
ENV PATH=/opt/handpose/bin:$PATH \
    HOME=/tmp \
    PYTHONPATH=/app \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /app

# ---- what has to be installed, by extra: changes with pyproject.toml, but the layers below only with its own extra
FROM base AS requirements
COPY pyproject.toml deploy/image/requirements.py /build/
RUN python3 /build/requirements.py /build/pyproject.toml service tracing > /build/gateway.txt \
 && python3 /build/requirements.py /build/pyproject.toml embedded > /build/embedded.txt \
 && python3 /build/requirements.py /build/pyproject.toml trainer > /build/trainer.txt

# ---- the gateway's packages
FROM base AS packages
# Where pip looks for packages, if not where it usually does; and the date that bytecode is independent of.
ARG PIP_INDEX_URL
ARG SOURCE_DATE_EPOCH=315532800
COPY constraints.txt /build/
COPY --from=requirements /build/gateway.txt /build/
RUN pip --python /opt/handpose/bin/python --disable-pip-version-check install --no-cache-dir \
      --only-binary :all: --constraint /build/constraints.txt --requirement /build/gateway.txt

# ---- gateway
FROM packages AS gateway
ARG SOURCE_DATE_EPOCH=315532800
COPY LICENSE deploy/image/healthcheck.py ./
COPY service service
RUN python -m compileall -q service
# The container's network decides who can reach it.
ENV HANDPOSE_REST_HOST=0.0.0.0 \
    HANDPOSE_GRPC_HOST=0.0.0.0 \
    HANDPOSE_MODEL_REPO=/models \
    HANDPOSE_BACKEND=tensorflow_serving
USER 10001:10001
EXPOSE 8000 8001
HEALTHCHECK --interval=10s --timeout=6s --start-period=120s --retries=3 CMD ["python", "healthcheck.py"]
ENTRYPOINT ["python", "-m", "service"]
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.version="${VERSION}" org.opencontainers.image.revision="${REVISION}"

# ---- TensorFlow, in a layer that embedded and trainer share
FROM packages AS tensorflow
ARG PIP_INDEX_URL
ARG SOURCE_DATE_EPOCH=315532800
COPY --from=requirements /build/embedded.txt /build/
# Its 430 MB of C++ headers are for those who compile operations of their own.
RUN pip --python /opt/handpose/bin/python --disable-pip-version-check install --no-cache-dir \
      --only-binary :all: --constraint /build/constraints.txt --requirement /build/embedded.txt \
 && rm -r /opt/handpose/lib/python3.*/site-packages/tensorflow/include

# ---- trainer
FROM tensorflow AS trainer
ARG PIP_INDEX_URL
ARG SOURCE_DATE_EPOCH=315532800
COPY --from=requirements /build/trainer.txt /build/
RUN pip --python /opt/handpose/bin/python --disable-pip-version-check install --no-cache-dir \
      --only-binary :all: --constraint /build/constraints.txt --requirement /build/trainer.txt
COPY LICENSE /app/
COPY service /app/service
COPY trainer /app/trainer
# An empty volume takes over the owner of the folder that it is mounted on.
RUN python -m compileall -q /app && install -d -o 10001 -g 10001 /models /work
WORKDIR /work
USER 10001:10001
ENTRYPOINT ["python", "-m", "trainer"]
CMD ["--help"]
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.version="${VERSION}" org.opencontainers.image.revision="${REVISION}"

# ---- the models, exported from trainer/weights
FROM trainer AS exported
RUN python -m trainer export --model-repo /models

# ---- embedded
FROM tensorflow AS embedded
ARG SOURCE_DATE_EPOCH=315532800
COPY --from=exported /models /models
COPY LICENSE deploy/image/healthcheck.py ./
COPY service service
RUN python -m compileall -q service
ENV HANDPOSE_REST_HOST=0.0.0.0 \
    HANDPOSE_GRPC_HOST=0.0.0.0 \
    HANDPOSE_MODEL_REPO=/models \
    HANDPOSE_BACKEND=embedded
USER 10001:10001
EXPOSE 8000 8001
HEALTHCHECK --interval=10s --timeout=6s --start-period=120s --retries=3 CMD ["python", "healthcheck.py"]
ENTRYPOINT ["python", "-m", "service"]
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.version="${VERSION}" org.opencontainers.image.revision="${REVISION}"
