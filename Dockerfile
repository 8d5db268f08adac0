# A small image that serves the default model as a user without rights.
FROM python:3.11-slim AS build
WORKDIR /src
RUN python -m venv /opt/trimtab
ENV PATH=/opt/trimtab/bin:$PATH PIP_NO_CACHE_DIR=1
COPY constraints.txt pyproject.toml README.md LICENSE ./
# The CPU build of torch: the default one carries gigabytes of CUDA.
RUN pip install --index-url https://download.pytorch.org/whl/cpu "$(grep '^torch==' constraints.txt)"
COPY server server
COPY controller controller
COPY policies policies
COPY pruners pruners
COPY telemetry telemetry
RUN pip install -c constraints.txt . \
 && TRIMTAB_CACHE=/opt/models trimtab fetch \
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
