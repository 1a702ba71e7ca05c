{{/* Names, labels and image, used by all objects. */}}

{{- define "llmproxy.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Shorter than the 63 characters of a name, because suffixes like `-headless` and `-metrics` follow. */}}
{{- define "llmproxy.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "llmproxy.name" . -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- $full | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "llmproxy.selectorLabels" -}}
app.kubernetes.io/name: {{ include "llmproxy.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* The labels that select the gateway pods; those of the simulator differ in the component. */}}
{{- define "llmproxy.gatewayLabels" -}}
{{ include "llmproxy.selectorLabels" . }}
app.kubernetes.io/component: gateway
{{- end -}}

{{- define "llmproxy.labels" -}}
{{ include "llmproxy.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "llmproxy.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "llmproxy.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "llmproxy.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{- define "llmproxy.kind" -}}
{{- .Values.kind | default (ternary "StatefulSet" "Deployment" .Values.persistence.enabled) -}}
{{- end -}}

{{/* `true` if there may be more than one gateway. */}}
{{- define "llmproxy.several" -}}
{{- if or (and .Values.autoscaling.enabled (gt (int .Values.autoscaling.maxReplicas) 1)) (and (not .Values.autoscaling.enabled) (gt (int .Values.replicaCount) 1)) -}}
true
{{- end -}}
{{- end -}}

{{- define "llmproxy.configMapName" -}}
{{- .Values.existingConfigMap | default (include "llmproxy.fullname" .) -}}
{{- end -}}

{{/* The port of /metrics, /health and /ready: `metrics`, or `http` without a separate port. */}}
{{- define "llmproxy.operatorPort" -}}
{{- $server := dig "server" dict .Values.config -}}
{{- ternary "metrics" "http" (not (empty (get $server "metrics_listen"))) -}}
{{- end -}}

{{/* The scheme of that port: HTTP or HTTPS. */}}
{{- define "llmproxy.operatorScheme" -}}
{{- ternary "HTTPS" "HTTP" (and .Values.tls.enabled (eq (include "llmproxy.operatorPort" .) "http")) -}}
{{- end -}}
