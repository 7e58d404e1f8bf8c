# The gateway on a base image without a shell or package manager. docs/deploying/containers.md describes its use.
#
#   docker build -t cached-gateway .
#   docker run --rm --read-only --tmpfs /tmp -p 8000:8000 -v ./gateway.yaml:/etc/gateway/gateway.yaml:ro cached-gateway

# The Debian of the base image below, so that both have the same Python and C library.
FROM debian:bookworm-slim AS build
# The packages' versions are those of Debian's release, which has security fixes alone.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends binutils python3-venv \
    && rm -rf /var/lib/apt/lists/*
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1 PATH=/opt/venv/bin:$PATH
RUN python3 -m venv /opt/venv
WORKDIR /src

# The dependencies are a layer of their own, so that a change of the code does not fetch them again. EXTRAS are names of
# pyproject.toml's optional dependencies: identity, otel.
ARG EXTRAS=""
COPY pyproject.toml constraints.txt ./
RUN python -c 'import os, tomllib; \
        project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
        extras = [project["optional-dependencies"][name] for name in os.environ.get("EXTRAS", "").split()]; \
        print(*sum(extras, project["dependencies"]), sep="\n")' \
        > requirements.txt \
    && pip install --constraint constraints.txt --requirement requirements.txt

# Without symbols the compiled modules take a third; compiled here, since the container's file system is read-only.
COPY README.md LICENSE ./
COPY gateway gateway
RUN pip install --no-deps . \
    && pip uninstall --yes setuptools pip \
    && find /opt/venv -name '*.so*' -type f -exec strip --strip-unneeded {} + \
    && python -m compileall -q /opt/venv/lib


FROM gcr.io/distroless/python3-debian12:nonroot
COPY --from=build /opt/venv /opt/venv
# GATEWAY_HOST: a container's localhost can't be reached from outside of it.
ENV PATH=/opt/venv/bin:/usr/bin:/bin PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    GATEWAY_HOST=0.0.0.0 GATEWAY_PORT=8000
WORKDIR /etc/gateway
USER 65532:65532
EXPOSE 8000 9000
STOPSIGNAL SIGTERM

# Without the proxy that the environment may name: the request is to this container.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open(f\"http://127.0.0.1:{os.environ['GATEWAY_PORT']}/healthz\", timeout=2)"]

# The base image's entry point is Python.
ENTRYPOINT ["gateway"]
CMD ["serve", "--config", "/etc/gateway/gateway.yaml"]
