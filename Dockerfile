# Two images from one file: `service` (the default: the server, the command line, the client) and `ray` (the same with
# Ray). docker/README.md tells how to run them, docker/images.py builds and tries them where there is no Docker.
#
# A mirror of the package index is given as a secret, so that neither its address nor a password gets into a layer:
#   docker build --secret id=pip.conf,src=$HOME/.config/pip/pip.conf --secret id=ca.crt,src=mirror-ca.crt .
ARG BASE=docker.io/library/python:3.11-slim

# What is needed to install, and does not run: pip and the wheels' build back end, pinned like everything else.
FROM ${BASE} AS tools
COPY docker/constraints.txt docker/install.sh /src/docker/
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.crt,target=/run/ca.crt \
    sh /src/docker/install.sh tools

# The dependencies apart from the code, so that a change of the code fetches nothing.
FROM tools AS service-dependencies
COPY pyproject.toml /src/
COPY clients/python/pyproject.toml /src/clients/python/
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.crt,target=/run/ca.crt \
    sh /src/docker/install.sh dependencies server

FROM service-dependencies AS ray-dependencies
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.crt,target=/run/ca.crt \
    sh /src/docker/install.sh dependencies server ray

FROM tools AS wheels
COPY pyproject.toml README.md LICENSE /src/
COPY clients/python /src/clients/python
COPY blackbox /src/blackbox
COPY server /src/server
RUN sh /src/docker/install.sh wheels

FROM service-dependencies AS service-files
COPY --from=wheels /wheels /wheels
RUN sh /src/docker/install.sh code

FROM ray-dependencies AS ray-files
COPY --from=wheels /wheels /wheels
RUN sh /src/docker/install.sh code

# What both images are, apart from the packages.
FROM ${BASE} AS runtime
RUN groupadd --system --gid 10001 blackbox \
 && useradd --system --uid 10001 --gid 10001 --home-dir /data --shell /usr/sbin/nologin blackbox \
 && install -d -o blackbox -g blackbox -m 0700 /data /keys /keys/admin /keys/worker /keys/ray
COPY docker/healthcheck.py /opt/healthcheck.py
USER 10001:10001
WORKDIR /data
ENV PATH=/opt/blackbox/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
ENTRYPOINT ["blackbox"]
LABEL org.opencontainers.image.title="blackbox" \
      org.opencontainers.image.description="Gradient-free black-box optimization as a service" \
      org.opencontainers.image.licenses="Apache-2.0"

FROM runtime AS ray
COPY --from=ray-files /opt/blackbox /opt/blackbox
COPY docker/ray.sh /opt/ray.sh
# Ray writes to its home, and runs what anybody sends who knows the token.
ENV HOME=/tmp RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=/keys/ray/token RAY_HEAD=head:6379
ENTRYPOINT ["sh", "/opt/ray.sh"]
CMD ["head"]
HEALTHCHECK --interval=10s --timeout=10s --start-period=120s CMD ["sh", "/opt/ray.sh", "healthy"]

FROM runtime AS service
COPY --from=service-files /opt/blackbox /opt/blackbox
ENV BLACKBOX_HOST=0.0.0.0 BLACKBOX_PORT=8800 BLACKBOX_DATABASE=/data/blackbox.db
EXPOSE 8800
CMD ["serve"]
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["python", "/opt/healthcheck.py"]
