# nextpixel serve on CPUs. Build: docker build -t nextpixel .
# TORCH_INDEX is the address of a package index with CPU builds of torch; without it torch brings gigabytes for GPUs.
# Run: docker run --read-only --tmpfs /tmp:exec -p 8000:8000 nextpixel
FROM python:3.13-slim AS build
ARG TORCH_INDEX=
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN python -m venv /opt/nextpixel \
    && /opt/nextpixel/bin/pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} \
        "$(grep '^torch==' constraints.txt)"
COPY src src
RUN /opt/nextpixel/bin/pip install --no-cache-dir -c constraints.txt '.[server]'

FROM python:3.13-slim
# The compiler builds the int8 kernels for the processor at hand.
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 nextpixel
COPY --from=build /opt/nextpixel /opt/nextpixel
ENV PATH=/opt/nextpixel/bin:$PATH NEXTPIXEL_CACHE=/tmp/nextpixel PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001
WORKDIR /home/nextpixel
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["nextpixel"]
CMD ["serve", "--host", "0.0.0.0"]
