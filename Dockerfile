# One image per accelerator. Targets: cpu (the default), tpu, cuda.
#
#   docker build --target=cpu --tag=rolegen:cpu .
#   docker run --rm --volume="$PWD/runs:/rolegen/runs" rolegen:cpu \
#       train --experiment=demo --workdir=runs/demo
#
# Arguments go to `rolegen`. For the commands of launch/, replace the entry point:
#
#   docker run --rm --entrypoint=python rolegen:cpu -m launch.doctor

FROM python:3.12-slim AS base
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1
WORKDIR /rolegen
# runs/ and data/ are where relative paths point; mount volumes there.
# cache/ is for compiled programs, where a volume is mounted for those of several containers.
RUN useradd --create-home rolegen && mkdir runs data cache && chown rolegen: runs data cache
# Buckets too: pods rarely have another storage that all of them see.
COPY requirements.txt requirements-serve.txt requirements-cloud.txt ./
ENTRYPOINT ["rolegen"]
CMD ["--help"]

# In each target the requirements come first: an edit of the code keeps their layer. The working
# directory holds the checkout, the same code that is installed.

FROM base AS tpu
RUN pip install -r requirements.txt -r requirements-serve.txt -r requirements-cloud.txt 'jax[tpu]'
COPY . .
RUN pip install --no-deps . && rm -rf build *.egg-info
USER rolegen

FROM base AS cuda
# The NVIDIA container runtime mounts the driver's compute libraries only where this asks for them.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN pip install -r requirements.txt -r requirements-serve.txt -r requirements-cloud.txt 'jax[cuda12]'
COPY . .
RUN pip install --no-deps . && rm -rf build *.egg-info
USER rolegen

FROM base AS cpu
RUN pip install -r requirements.txt -r requirements-serve.txt -r requirements-cloud.txt
COPY . .
RUN pip install --no-deps . && rm -rf build *.egg-info
USER rolegen
