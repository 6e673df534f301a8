# A node in a container.  docker build -t kvswap . ; with --build-arg EXTRA=torch one that also computes.
#
#   docker run -d --name node -v kvswap:/home/kvswap -p 4777:4777 -p 4778:4778 kvswap \
#       daemon --listen /ip4/0.0.0.0/tcp/4777 --announce /ip4/ADDRESS/tcp/4777 --bulk-port 4778
#   docker exec node kvswap status
#
# The local API stays on the container's loopback: the command line is used with `docker exec`.
FROM python:3.12-slim-bookworm AS build
# hadolint ignore=DL3008  # the release of the base image says which versions there are
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential libgmp-dev \
    && rm -rf /var/lib/apt/lists/*
ARG EXTRA=""
ARG TORCH_INDEX="https://download.pytorch.org/whl/cpu"
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY kvswap kvswap
RUN python -m venv /opt/kvswap \
    && if [ "$EXTRA" = torch ]; then /opt/kvswap/bin/pip install --no-cache-dir torch --index-url "$TORCH_INDEX"; fi \
    && /opt/kvswap/bin/pip install --no-cache-dir ".${EXTRA:+[$EXTRA]}" \
    && /opt/kvswap/bin/python -c "from kvswap.codec.predictive import _fast; from kvswap.codec.predictive2 import _stream; from kvswap.core import _scan"

FROM python:3.12-slim-bookworm
# hadolint ignore=DL3008  # the release of the base image says which versions there are
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgmp10 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 kvswap
COPY --from=build /opt/kvswap /opt/kvswap
ENV PATH=/opt/kvswap/bin:$PATH KVSWAP_HOME=/home/kvswap/node KVSWAP_MODELS=/home/kvswap/models KVSWAP_LOG_FORMAT=json
USER 1000:1000
VOLUME /home/kvswap
EXPOSE 4777 4778
HEALTHCHECK --interval=30s --timeout=10s --start-period=20s CMD ["kvswap", "status", "--quiet"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["kvswap"]
CMD ["daemon", "-v", "--listen", "/ip4/0.0.0.0/tcp/4777", "--bulk-port", "4778"]
