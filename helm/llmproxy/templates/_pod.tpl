{{/* The pod template of the gateway, for Deployment and StatefulSet. */}}

{{- define "llmproxy.podTemplate" -}}
metadata:
  {{- /* Without the version labels: a new chart version alone must not roll the pods. */}}
  labels:
    {{- include "llmproxy.gatewayLabels" . | nindent 4 }}
    {{- with .Values.commonLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    kubectl.kubernetes.io/default-container: llmproxy
    {{- if not .Values.existingConfigMap }}
    {{- if eq .Values.reload "rollout" }}
    checksum/config: {{ printf "%s%s" (include "llmproxy.config" .) (toJson .Values.scripts) | sha256sum }}
    {{- else }}
    checksum/restart-keys: {{ include "llmproxy.restartKeys" . | sha256sum }}
    {{- end }}
    {{- end }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "llmproxy.serviceAccountName" . }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ include "llmproxy.gracePeriod" . }}
  {{- with .Values.podSecurityContext }}
  securityContext:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .Values.dnsConfig }}
  dnsConfig:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.initContainers }}
  initContainers:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: llmproxy
      {{- include "llmproxy.container" . | nindent 6 }}
    {{- with .Values.extraContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    {{- include "llmproxy.volumes" . | trim | nindent 4 }}
  {{- with .Values.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- $gateways := dict "labelSelector" (dict "matchLabels" (include "llmproxy.gatewayLabels" $ | fromYaml)) }}
    {{- range . }}
    {{- list (hasKey . "labelSelector" | ternary . (merge (deepCopy .) $gateways)) | toYaml | nindent 4 }}
    {{- end }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{- define "llmproxy.container" -}}
image: {{ include "llmproxy.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args: [serve, --config, /etc/llmproxy/llmproxy.yaml]
{{- with .Values.securityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with include "llmproxy.env" . }}
env:
  {{- . | trim | nindent 2 }}
{{- end }}
{{- with .Values.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
ports:
  {{- range include "llmproxy.ports" . | fromYamlArray }}
  - name: {{ .name }}
    containerPort: {{ .port }}
  {{- end }}
{{- range $name := list "startup" "liveness" "readiness" }}
{{- with get $.Values.probes $name }}
{{ $name }}Probe:
  httpGet:
    path: {{ .path }}
    port: {{ include "llmproxy.operatorPort" $ }}
    scheme: {{ include "llmproxy.operatorScheme" $ }}
  {{- toYaml (omit . "path") | nindent 2 }}
{{- end }}
{{- end }}
{{- if gt (int .Values.preStopSeconds) 0 }}
lifecycle:
  preStop:
    sleep:
      seconds: {{ int .Values.preStopSeconds }}
{{- end }}
{{- with .Values.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumeMounts:
  {{- include "llmproxy.volumeMounts" . | trim | nindent 2 }}
{{- end -}}

{{/* The ports of the gateway: the API first. */}}
{{- define "llmproxy.ports" -}}
- name: http
  port: {{ include "llmproxy.port" (dict "address" .Values.config.listen "key" "listen") }}
{{- if eq (include "llmproxy.operatorPort" .) "metrics" }}
- name: metrics
  port: {{ include "llmproxy.port" (dict "address" .Values.config.server.metrics_listen "key" "server.metrics_listen") }}
{{- end }}
{{- if .Values.admin.enabled }}
- name: admin
  port: {{ .Values.admin.port }}
{{- end }}
{{- end -}}

{{- define "llmproxy.secretEnv" -}}
- name: {{ .name }}
  valueFrom:
    secretKeyRef:
      name: {{ .secret }}
      key: {{ .key }}
{{- end -}}

{{- define "llmproxy.env" -}}
{{- $v := .Values -}}
{{- if and $v.redis.enabled $v.redis.existingSecret }}
{{ include "llmproxy.secretEnv" (dict "name" "LLMPROXY_REDIS_PASSWORD" "secret" $v.redis.existingSecret "key" $v.redis.existingSecretKey) }}
{{- end }}
{{- if and $v.database.enabled $v.database.existingSecret }}
{{ include "llmproxy.secretEnv" (dict "name" "LLMPROXY_DATABASE_PASSWORD" "secret" $v.database.existingSecret "key" $v.database.existingSecretKey) }}
{{- end }}
{{- if $v.admin.enabled }}
{{ include "llmproxy.secretEnv" (dict "name" "LLMPROXY_ADMIN_TOKEN" "secret" $v.admin.existingSecret "key" $v.admin.existingSecretKey) }}
{{- end }}
{{- range $v.secrets }}
{{- if .env }}
{{ include "llmproxy.secretEnv" (dict "name" .env "secret" .secretName "key" .key) }}
{{- end }}
{{- end }}
{{- with $v.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The secrets provided as files: sources of one projected volume. */}}
{{- define "llmproxy.secretFiles" -}}
{{- range .Values.secrets }}
{{- if .file }}
- secret:
    name: {{ .secretName }}
    items:
      - key: {{ .key }}
        path: {{ .file }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "llmproxy.volumes" -}}
- name: config
  configMap:
    name: {{ include "llmproxy.configMapName" . }}
- name: tmp
  emptyDir:
    sizeLimit: 64Mi
{{- if not .Values.persistence.enabled }}
- name: data
  emptyDir:
    sizeLimit: {{ .Values.emptyDirSize }}
{{- end }}
{{- with include "llmproxy.secretFiles" . }}
- name: secrets
  projected:
    defaultMode: 0440
    sources:
      {{- . | trim | nindent 6 }}
{{- end }}
{{- if .Values.tls.enabled }}
- name: tls
  secret:
    secretName: {{ .Values.tls.secretName }}
    defaultMode: 0440
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* A mounted folder follows its ConfigMap; a file mounted with `subPath` does not change. */}}
{{- define "llmproxy.volumeMounts" -}}
{{- if eq .Values.reload "rollout" }}
{{- range $file := prepend (keys .Values.scripts | sortAlpha) "llmproxy.yaml" }}
- name: config
  mountPath: /etc/llmproxy/{{ $file }}
  subPath: {{ $file }}
  readOnly: true
{{- end }}
{{- else }}
- name: config
  mountPath: /etc/llmproxy
  readOnly: true
{{- end }}
- name: data
  mountPath: {{ .Values.config.data_dir }}
- name: tmp
  mountPath: /tmp
{{- if include "llmproxy.secretFiles" . }}
- name: secrets
  mountPath: /run/secrets/llmproxy
  readOnly: true
{{- end }}
{{- if .Values.tls.enabled }}
- name: tls
  mountPath: /run/secrets/llmproxy-tls
  readOnly: true
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}
