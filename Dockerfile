# torch is the build that pip's index offers, for CUDA or for the CPU alone.
FROM python:3.11-slim

WORKDIR /opt/dmri_monai
# dependencies first: they change less often than the code
COPY requirements.lock ./
RUN pip install --no-cache-dir -r requirements.lock

COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY dmri_monai ./dmri_monai
COPY bundle ./bundle
COPY configs ./configs
RUN pip install --no-cache-dir --no-deps --no-build-isolation --editable . \
    && useradd --create-home --uid 1000 dmri \
    && mkdir /data && chown 1000 /data

USER 1000
ENV MPLBACKEND=Agg PYTHONUNBUFFERED=1
VOLUME /data
ENTRYPOINT ["dmri-monai"]
CMD ["--help"]
