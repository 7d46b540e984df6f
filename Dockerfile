# The service. Two stages: wheels are built with a compiler at hand, and run without one, as a user without rights.
FROM python:3.11-slim AS build
WORKDIR /src
COPY docker/constraints.txt docker/constraints.txt
COPY pyproject.toml README.md LICENSE ./
COPY clients/python clients/python
COPY blackbox blackbox
COPY server server
RUN python -m venv /opt/blackbox \
 && /opt/blackbox/bin/pip install --no-cache-dir --constraint docker/constraints.txt ./clients/python '.[server]'

FROM python:3.11-slim
COPY --from=build /opt/blackbox /opt/blackbox
RUN useradd --system --uid 10001 --home-dir /data --create-home blackbox
USER blackbox
WORKDIR /data
VOLUME /data
ENV PATH=/opt/blackbox/bin:$PATH BLACKBOX_HOST=0.0.0.0 BLACKBOX_DATABASE=/data/blackbox.db \
    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 PYTHONUNBUFFERED=1
EXPOSE 8800
HEALTHCHECK --interval=10s --timeout=3s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8800/readyz', timeout=2)"]
ENTRYPOINT ["blackbox"]
CMD ["serve"]
