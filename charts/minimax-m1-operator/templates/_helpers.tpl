{{- define "minimax-m1-operator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "minimax-m1-operator.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains .Chart.Name .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- /* The name stays minimax-m1-operator whatever the release: deployments' NetworkPolicies let pods of this name in. */}}
{{- define "minimax-m1-operator.selectorLabels" -}}
app.kubernetes.io/name: minimax-m1-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "minimax-m1-operator.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "minimax-m1-operator.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: operator
app.kubernetes.io/part-of: minimax-m1
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "minimax-m1-operator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "minimax-m1-operator.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "minimax-m1-operator.image" -}}
{{- $image := index . 0 }}{{- $root := index . 1 -}}
{{- if $image.digest }}{{ $image.repository }}@{{ $image.digest }}
{{- else }}{{ $image.repository }}:{{ default $root.Chart.AppVersion $image.tag }}
{{- end }}
{{- end }}

{{- /* What the schema cannot say: values that contradict one another. */}}
{{- define "minimax-m1-operator.check" -}}
{{- if and (gt (int .Values.replicaCount) 1) (not .Values.leaderElection.enabled) }}
{{- fail (printf "replicaCount: %d operators without leader election would act at the same time; set leaderElection.enabled: true" (int .Values.replicaCount)) }}
{{- end }}
{{- if and .Values.metrics.serviceMonitor.enabled (not .Values.metrics.service.enabled) }}
{{- fail "metrics.serviceMonitor.enabled: a ServiceMonitor scrapes the Service; set metrics.service.enabled: true" }}
{{- end }}
{{- end }}
