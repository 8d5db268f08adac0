# A small image that serves the default model as a user without rights.
FROM python:3.11-slim AS build
WORKDIR /src
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/trimtab
ENV PATH=/opt/trimtab/bin:$PATH PIP_NO_CACHE_DIR=1
COPY constraints.txt pyproject.toml README.md LICENSE ./
# Give PyTorch's index of CPU builds as TORCH_INDEX for a small image: on x86-64 the build that the
# default index has carries gigabytes of CUDA.
ARG TORCH_INDEX=""
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$(grep '^torch==' constraints.txt)"
COPY server server
COPY controller controller
COPY policies policies
COPY pruners pruners
COPY telemetry telemetry
RUN pip install -c constraints.txt . \
 && TRIMTAB_CACHE=/opt/models trimtab pull \
 && chmod -R a+rX /opt/models

FROM python:3.11-slim
RUN useradd --create-home --uid 1000 trimtab
COPY --from=build /opt/trimtab /opt/trimtab
COPY --from=build /opt/models /opt/models
ENV PATH=/opt/trimtab/bin:$PATH TRIMTAB_CACHE=/opt/models TRIMTAB_HOST=0.0.0.0
USER trimtab
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", \
  "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=3)"]
ENTRYPOINT ["trimtab"]
CMD ["serve"]
