# The part of the payload that runs at CPL 0: entry, descriptor tables, page tables,
# exception stubs and a handful of services. Everything else is Rust at CPL 3 with
# every port open (by IOPL and by the I/O bitmap: where CPL 3 is native without VT-x, `iretq`
# loses the IOPL) and all pages user-accessible, because that is native everywhere.
#
# `.boot` is linked at BASE, and its tables stand at fixed offsets, so that the IDT,
# GDT and page tables are complete in the image and need no code to build.

.set BASE,      0x100000
.set STUBS,     BASE + 0x800        # 32 exception stubs of 16 bytes
.set IDT,       BASE + 0x1000
.set GDT,       BASE + 0x1200
.set TSS,       BASE + 0x1700       # 64 of 128 bytes
.set IO_BITMAP, BASE + 0x3700       # one for all TSSs: every port is allowed
.set PML4,      BASE + 0x6000
.set PDPT,      BASE + 0x7000
.set PD,        BASE + 0x8000       # four pages: the first 4 GiB in 2 MiB pages
.set TRAMPOLINE, 0x8000             # where smp.rs copies `trampoline`

.set KCODE32, 0x08
.set KCODE64, 0x10
.set KDATA,   0x18
.set UDATA,   0x23
.set UCODE,   0x2b
.set TSS_SEL, 0x40
.set IOPL3,   0x3002
.set MAGIC,   0x6c6c61636b          # "kcall"

.section .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18                  # name size, descriptor size, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_start

.section .boot, "awx", @progbits
boot_start:

# ---- entry of the boot processor: 32-bit protected mode, EBX = hvm_start_info
.code32
.globl pvh_start
pvh_start:
    mov $0x3f8, %edx
    mov $0x21, %al                  # '!': the first guest instruction that the host sees
    out %al, %dx
    mov %ebx, boot_start_info
    xor %ebp, %ebp
    movl $bsp_user_start, boot_user_entry

# ---- common 32-bit path, EBP = CPU index
join32:
    lgdt gdt_pointer
    mov $0x620, %eax                # PAE, OSFXSR, OSXMMEXCPT
    mov %eax, %cr4
    mov $PML4, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx
    mov $0x100, %eax                # EFER.LME
    xor %edx, %edx
    wrmsr
    mov $0x80000033, %eax           # PG, NE, ET, MP, PE; caches on
    mov %eax, %cr0
    ljmp $KCODE64, $join64

.code64
join64:
    mov %ebp, %eax
    inc %eax
    shl $10, %eax
    lea __kernel_stacks(%rax), %rsp
    mov %ebp, %eax
    shl $7, %eax
    mov %rsp, TSS + 4(%rax)         # RSP0
    lidt idt_pointer
    mov %ebp, %eax
    shl $4, %eax
    add $TSS_SEL, %eax
    ltr %ax
    mov %ebp, %eax
    inc %eax
    shl $15, %eax
    lea __user_stacks - 8(%rax), %rax
    push $UDATA
    push %rax
    push $IOPL3
    push $UCODE
    mov boot_user_entry, %eax
    push %rax
    mov %ebp, %edi
    iretq

# ---- CPL 3: clear .bss at native speed, then Rust
bsp_user_start:
    mov $__bss_start, %edi
    mov $__bss_end, %ecx
    sub %edi, %ecx
    xor %eax, %eax
    rep stosb
    mov boot_start_info, %edi
    jmp bsp_main

# ---- application processors: real mode at TRAMPOLINE, copied there
.code16
.globl trampoline, trampoline_end
trampoline:
    cli
    xor %ax, %ax
    mov %ax, %ds
    lgdtl TRAMPOLINE + (trampoline_gdt - trampoline)
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    ljmpl $KCODE32, $ap32
    .balign 8
trampoline_gdt:
    .word 0x3f + 64 * 16
    .long GDT
trampoline_end:

.code32
ap32:
    mov $KDATA, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov boot_ap_index, %ebp
    movl $ap_main, boot_user_entry
    jmp join32

    .balign 8
gdt_pointer:
    .word 0x3f + 64 * 16
    .long GDT
    .balign 8
idt_pointer:
    .word 32 * 16 - 1
    .quad IDT
    .balign 8
null_pointer:
    .word 0
    .quad 0

.globl boot_ap_index, boot_nmi_count
boot_start_info: .long 0
boot_user_entry: .long 0
boot_ap_index:   .long 0
boot_nmi_count:  .long 0
boot_trap_depth: .long 0

# ---- exception stubs
.code64
.org 0x800
.set vector, 0
.rept 32
    .balign 16
    .if vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30
    .else
    push $0
    .endif
    push $vector
    jmp trap_common
    .set vector, vector + 1
.endr

    .balign 16
# Stack: vector, error code, RIP, CS, RFLAGS, RSP, SS.
trap_common:
    cmpl $2, (%rsp)
    je nmi
    cmpl $6, (%rsp)
    jne 1f
    cmpl $UCODE, 24(%rsp)
    jne 1f
    push %rbx
    movabs $MAGIC, %rbx
    cmp %rbx, %rax
    pop %rbx
    je kcall
1:  cmpl $KCODE64, 24(%rsp)         # a service that may fault: return its error
    jne fatal
    cmpq $msr_begin, 16(%rsp)
    jb fatal
    cmpq $msr_end, 16(%rsp)
    jae fatal
    mov $1, %r9d
    movq $kcall_done, 16(%rsp)
    add $16, %rsp
    iretq

nmi:
    lock incl boot_nmi_count
    add $16, %rsp
    iretq

# Saves everything and leaves the report to `trap_main`, at CPL 3 on its own stack.
fatal:
    push %r15
    push %r14
    push %r13
    push %r12
    push %r11
    push %r10
    push %r9
    push %r8
    push %rdi
    push %rsi
    push %rbp
    push %rdx
    push %rcx
    push %rbx
    push %rax
    mov %cr2, %rax
    push %rax
    lock incl boot_trap_depth
    cmpl $1, boot_trap_depth
    jne triple_fault                # a fault in the report, or on two CPUs
    mov %rsp, %rdi
    push $UDATA
    mov $__user_stacks + 65 * 32768 - 8, %eax
    push %rax
    push $IOPL3
    push $UCODE
    mov $trap_main, %eax
    push %rax
    iretq

# ---- services: `ud2` at CPL 3 with RAX = MAGIC, R8 = service (cpu.rs has the list).
# Arguments RCX, RDX, R9; results RAX, RCX, RDX, R9, R10.
kcall:
    add $16, %rsp
    addq $2, (%rsp)
    cmp $0, %r8d
    je do_cpuid
    cmp $1, %r8d
    je do_rdmsr
    cmp $2, %r8d
    je do_wrmsr
    cmp $3, %r8d
    je do_out
    cmp $4, %r8d
    je do_in
    cmp $5, %r8d
    je do_store
    cmp $6, %r8d
    je do_load
    cmp $7, %r8d
    je do_halt
    cmp $8, %r8d
    je triple_fault
    cmp $9, %r8d
    je do_int3
    cmp $10, %r8d
    je do_nop
kcall_done:
    iretq

do_nop:
    iretq

do_cpuid:
    push %rbx
    mov %r9d, %eax
    cpuid
    mov %rbx, %r10
    pop %rbx
    iretq

do_rdmsr:
    xor %r9d, %r9d
msr_begin:
    rdmsr
    jmp kcall_done
do_wrmsr:
    mov %r9d, %eax
    xor %r9d, %r9d
    wrmsr
    jmp kcall_done
msr_end:

do_out:                             # RDX port, R9 value, RCX width
    mov %r9d, %eax
    cmp $2, %ecx
    jb 1f
    je 2f
    out %eax, %dx
    iretq
1:  out %al, %dx
    iretq
2:  out %ax, %dx
    iretq

do_in:
    xor %eax, %eax
    cmp $2, %ecx
    jb 1f
    je 2f
    in %dx, %eax
    iretq
1:  in %dx, %al
    iretq
2:  in %dx, %ax
    iretq

do_store:                           # RDX address, R9 value, RCX width
    cmp $2, %ecx
    jb 1f
    je 2f
    cmp $8, %ecx
    je 8f
    mov %r9d, (%rdx)
    iretq
1:  mov %r9b, (%rdx)
    iretq
2:  mov %r9w, (%rdx)
    iretq
8:  mov %r9, (%rdx)
    iretq

do_load:
    xor %eax, %eax
    cmp $2, %ecx
    jb 1f
    je 2f
    cmp $8, %ecx
    je 8f
    mov (%rdx), %eax
    iretq
1:  mov (%rdx), %al
    iretq
2:  mov (%rdx), %ax
    iretq
8:  mov (%rdx), %rax
    iretq

do_halt:
    hlt
    jmp do_halt

triple_fault:
    lidt null_pointer
    ud2

do_int3:
    int3
    iretq

# ---- tables
.org IDT - BASE
.set vector, 0
.rept 32
    .word (STUBS + vector * 16) & 0xffff
    .word KCODE64
    .word 0x8e00                    # present, DPL 0, interrupt gate
    .word STUBS >> 16
    .quad 0
    .set vector, vector + 1
.endr

.org GDT - BASE
    .quad 0
    .quad 0x00cf9b000000ffff        # 0x08: 32-bit code, DPL 0
    .quad 0x00af9b000000ffff        # 0x10: 64-bit code, DPL 0
    .quad 0x00cf93000000ffff        # 0x18: data, DPL 0
    .quad 0x00cff3000000ffff        # 0x20: data, DPL 3
    .quad 0x00affb000000ffff        # 0x28: 64-bit code, DPL 3
    .quad 0, 0
.set tss, TSS
.rept 64
    .quad 0x0000890000000000 | ((tss & 0xffffff) << 16) | (IO_BITMAP + 8192 - tss)
    .quad 0
    .set tss, tss + 128
.endr

.org TSS - BASE
.set tss, TSS
.rept 64
    .fill 102, 1, 0
    .word IO_BITMAP - tss
    .fill 24, 1, 0
    .set tss, tss + 128
.endr
.org IO_BITMAP - BASE
    .fill 8192, 1, 0
    .byte 0xff

# Present, writable, user, accessed (and dirty, large): the CPU has nothing to update.
.globl boot_pml4
.org PML4 - BASE
boot_pml4:
    .quad PDPT + 0x27
    .fill 511, 8, 0
.org PDPT - BASE
.set page, PD
.rept 4
    .quad page + 0x27
    .set page, page + 0x1000
.endr
    .fill 508, 8, 0
.org PD - BASE
.set page, 0xe7
.rept 2048
    .quad page
    .set page, page + 0x200000
.endr
